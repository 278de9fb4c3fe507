"""What readers and writers raise."""


class FormatError(ValueError):
    """A file that is damaged, contradicts itself, or is of a kind that is not supported.

    Attributes:
        choice: None, or the name in `bittorch.models.io.choices.CHOICES` of what the file leaves open.
    """

    choice: str | None = None


class LossyError(ValueError):
    """A conversion that would change values, and was not told that it may.

    Attributes:
        choice: None, or the name in `bittorch.models.io.choices.CHOICES` of what the format cannot hold.
    """

    choice: str | None = None
