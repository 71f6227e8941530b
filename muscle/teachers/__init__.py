"""The teacher cache: what frozen teachers say of the training tokens, computed once."""
