"""Errors. Every message names the thing, what was expected, what was found and what to do.

UniForgetError
|-- SettingError              a setting is out of its range
|-- MaskError                 values that are no mask: a gate above 1, an unknown kind, ...
|-- MaskFileError             a mask file cannot be read or written
|   |-- MaskFileMissingError      there is no such file
|   |-- NotAMaskError             another kind of file
|   |   `-- PickleRefusedError        a pickle: it could run code, so it is never opened
|   |-- NewerFormatError          written by a newer version of UniForget
|   |-- TruncatedError            the file ends too early
|   |-- BadContentsError          the parts do not fit together
|   |-- TooLargeError             more than a mask can hold
|   `-- MaskWriteError            nothing was written
|-- ModelFileError            a checkpoint cannot be read or written
|-- ReportFileError         a report cannot be written
|-- PromptFileError           a list of prompts cannot be read
|-- FamilyError               an unknown model family
|-- MismatchError             the mask does not fit the model: sites missing, or of other sizes
`-- LearnError                learning cannot start or go on
"""


class UniForgetError(Exception):
    """Base of all errors that UniForget raises on purpose."""


class SettingError(UniForgetError):
    """A setting is out of its range."""


class MaskError(UniForgetError):
    """Values that are no mask."""


class MaskFileError(UniForgetError):
    """A mask file cannot be read or written."""


class MaskFileMissingError(MaskFileError):
    """There is no such mask file."""


class NotAMaskError(MaskFileError):
    """Another kind of file than a mask."""


class PickleRefusedError(NotAMaskError):
    """A pickle, which could run code when opened, whatever its name says."""


class NewerFormatError(MaskFileError):
    """Written by a newer version of UniForget."""


class TruncatedError(MaskFileError):
    """The file ends before its contents do."""


class BadContentsError(MaskFileError):
    """A mask file whose parts do not fit together, or do not hold what they must."""


class TooLargeError(MaskFileError):
    """Larger than any mask can be."""


class MaskWriteError(MaskFileError):
    """The file could not be written; what was there before is unchanged."""


class ModelFileError(UniForgetError):
    """A checkpoint that cannot be read or written; what was there before is unchanged."""


class ReportFileError(UniForgetError):
    """A report that cannot be written; nothing half-written is left."""


class PromptFileError(UniForgetError):
    """A file or text with prompts that cannot be read, or holds something else."""


class FamilyError(UniForgetError):
    """An unknown model family."""


class MismatchError(UniForgetError):
    """A mask that does not fit the model: sites are missing, or have other sizes."""


class LearnError(UniForgetError):
    """Learning cannot start, or cannot go on."""
