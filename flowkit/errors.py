"""Every error that flowkit raises on purpose.

Each class also inherits the matching built-in, so callers may catch either. A message is one line: what happened,
the value, what was expected, and what to do next. The command line prints it without a traceback and exits with 1.
"""


class FlowkitError(Exception):
    """Base of all errors that a user can act on."""


class ConfigError(FlowkitError, ValueError):
    """A configuration key or value is unknown, mistyped or out of range."""


class ShardError(FlowkitError, OSError):
    """A source tar or folder of tars is missing, damaged or empty."""


class StoreError(FlowkitError, ValueError):
    """A feature store is damaged, incomplete or belongs to another encoder."""


class EncoderError(FlowkitError, ValueError):
    """Encoder weights are missing, damaged or of another architecture."""


class CheckpointError(FlowkitError, ValueError):
    """A checkpoint is damaged or belongs to another configuration."""


class TrainingError(FlowkitError, RuntimeError):
    """Training cannot go on, for instance after too many non-finite steps."""


class TrainingInterrupted(FlowkitError, RuntimeError):
    """Training was asked to stop, wrote a checkpoint and can go on from it."""


class StageError(FlowkitError, RuntimeError):
    """A stage cannot start or finish: another one works on the same result, or an input is not ready."""


class ReportError(FlowkitError, RuntimeError):
    """The report cannot be written, for instance because a page outgrew its budget."""
