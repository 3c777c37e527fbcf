"""Words that options choose between; here, so that reading a command's signature loads nothing else."""

from typing import Literal

Head = Literal["prototype", "ridge", "logistic", "own"]
"""What is fitted on fixed embeddings, or the method's own learner ("own")."""
ComparisonHead = Literal["prototype", "ridge", "logistic", "own"]
EvaluationHead = Literal["prototype", "ridge", "logistic", "steps", "own"]
"""The same, and a few inner steps of the whole network ("steps")."""
TasksFrom = Literal["own", "labels", "views", "clusters", "neighbours", "latent"]
"""Where few-shot tasks come from: `own` is the method's own source (see `task_sources`)."""
TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
"""Where figures go beside metrics.jsonl (see `tracking`)."""
