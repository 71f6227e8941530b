"""PEFT's adapter_config.json, validated: it comes from outside."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from muscle.errors import UserError
from muscle.models.fingerprint import read_adapter_config

FILE = "adapter_config.json"


class PeftConfig(BaseModel):
    """The fields that decide what a LoRA adapter computes; any others are kept as they are."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    peft_type: str
    r: Annotated[int, Field(ge=1, le=1 << 16)] = 8
    lora_alpha: float = 8
    target_modules: list[str] | str | None = None
    bias: str = "none"
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] | None = None
    alpha_pattern: dict[str, float] | None = None
    layers_to_transform: list[int] | int | None = None
    init_lora_weights: Any = True

    def fields(self) -> dict[str, Any]:
        """All fields, those not named here among them."""
        return {
            **(self.model_extra or {}),
            **{n: getattr(self, n) for n in type(self).model_fields},
        }


def read_config(folder: str) -> PeftConfig:
    """The config of the adapter in a local folder.

    Raises:
        UserError: it isn't there, or isn't a PEFT config.
    """
    found = read_adapter_config(folder)
    if found.get("peft_type") != "LORA":
        return PeftConfig(peft_type=str(found.get("peft_type"))[:40])
    try:
        return PeftConfig.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        value = repr(first["input"])[:60]
        raise UserError(f"{FILE}: '{where}' is {value}: {first['msg']}") from None
