"""Which statistics batch normalisation uses when a learner meets a task: the words, without torch."""

from typing import Literal

LearnerNorm = Literal["running", "support", "transductive"]
"""Those of training, of the support set, or of whatever batch is embedded (`learners.prototype`)."""
