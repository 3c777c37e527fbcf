"""The annotated shapes of some modules are checked in every test. It costs about 0.1 ms a call, so only here."""

from jaxtyping import install_import_hook

# Left out are modules whose own errors for wrong shapes are tested (the checker would speak first), and those
# that take dictionaries: beartype looks at a random entry, and a test watches Python's generator.
CHECKED = (
    "losses.contrastive",
    "losses.regression",
    "nets.conv4",
    "nets.heads",
    "nets.resnet",
    "nets.vit",
    "evaluate.table",
)

install_import_hook([f"selftaught.{name}" for name in CHECKED], "shape_checks.check")
