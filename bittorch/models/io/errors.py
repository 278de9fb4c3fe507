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


_POINTER = b"version https://git-lfs.github.com/"


def refuse_pointer(data: bytes, what: str) -> None:
    """Raises FormatError where a file's first bytes are those of what Git LFS puts in its place."""
    if data.startswith(_POINTER):
        raise FormatError(
            f"{what} is a pointer of Git LFS, not the file itself: the repository was cloned without it. Run git lfs "
            "pull there, or download the file"
        )
