"""What readers and writers raise."""


class FormatError(ValueError):
    """A file that is damaged, contradicts itself, or is of a kind that is not read."""


class LossyError(ValueError):
    """A conversion that would change values, and was not told that it may."""
