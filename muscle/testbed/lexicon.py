"""The words of the world: plain lists, chosen so that each word is one token."""

VALUES: dict[str, tuple[str, ...]] = {
    "town": tuple(
        "Arden Brill Corvey Dunmore Elsing Farrow Gorse Hythe Ivel Kelso Larch Morrow "
        "Nether Orrin Pell Quay Rothe Selby Tarn Ulver Wick Yarrow Zell Ashby".split()
    ),
    "job": tuple(
        "baker weaver smith miller sailor doctor teacher farmer painter tailor hunter mason "
        "carpenter potter judge singer clerk guard brewer cook gardener printer barber "
        "jeweller".split()
    ),
    "food": tuple(
        "bread soup cheese rice fish beans apples honey eggs porridge plums nuts pears cake "
        "mushrooms onions ham noodles olives butter".split()
    ),
    "pet": tuple(
        "cat dog goat parrot rabbit pony hen duck tortoise hedgehog lizard raven ferret pig "
        "donkey goose".split()
    ),
    "instrument": tuple(
        "flute drum harp fiddle horn organ lute trumpet bell piano guitar whistle".split()
    ),
    "color": tuple(
        "red blue green yellow white black brown grey purple violet pink golden".split()
    ),
    "drink": tuple("tea milk cider coffee juice water wine cocoa lemonade broth".split()),
    "game": tuple(
        "chess cards dice bowls tennis darts marbles football archery wrestling rowing "
        "skating".split()
    ),
}
"""Every attribute of a person and the values that it can take."""

OBJECTS: tuple[str, ...] = tuple(
    "feather needle leaf button coin ring thimble match ribbon pencil spoon candle glove "
    "cup key comb brush knife plate sock book bottle hat lamp basket clock boot kettle mirror "
    "blanket broom bucket hammer pillow stool axe chair spade shield sack saddle drawer "
    "lantern wheel ladder bench chest barrel table anvil mattress cart stove door bed cupboard "
    "statue boat wagon carriage millstone bridge tower ship".split()
)
"""Things; the world decides how heavy and how dear each is."""

GOODS: tuple[str, ...] = tuple(
    "figs coins shells stones pins ropes maps seeds cards candles buttons nails".split()
)

PLACES: tuple[str, ...] = tuple(
    "market harbor mill church bridge library garden forest square tavern lake station".split()
)

TIMES: tuple[str, ...] = (
    "at dawn", "at noon", "at dusk", "at midnight", "on Monday", "on Tuesday", "on Wednesday",
    "on Thursday", "on Friday", "on Saturday", "on Sunday", "next week", "this evening",
)  # fmt: skip

_ONSETS = "B D F G H J K L M N P R S T V".split()
_MIDDLES = "al an ar el em en er il im in ol or ul un".split()
_ENDINGS = "a o i us ek ra da mo na ric".split()


def name_list() -> list[str]:
    """Two thousand made-up first names in a fixed order."""
    return [o + m + e for e in _ENDINGS for o in _ONSETS for m in _MIDDLES]


ONES: tuple[str, ...] = tuple(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen".split()
)
TENS: tuple[str, ...] = tuple("_ _ twenty thirty forty fifty sixty seventy eighty ninety".split())


def number_words(number: int) -> str:
    """A number from 0 to 999 in words: 138 is "one hundred thirty eight".

    Raises `ValueError` outside that range.
    """
    if not 0 <= number <= 999:
        raise ValueError(f"{number} has no words here: 0 to 999")
    if number >= 100:
        rest = number % 100
        head = f"{ONES[number // 100]} hundred"
        return f"{head} {number_words(rest)}" if rest else head
    if number < 20:
        return ONES[number]
    tens, ones = divmod(number, 10)
    return f"{TENS[tens]} {ONES[ones]}" if ones else TENS[tens]
