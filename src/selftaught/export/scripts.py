"""The script that goes with an exported model, and runs where selftaught is not installed."""

_HEAD = '''"""{title}: python {name} PICTURE [PICTURE ...]. Needs {needs}; selftaught is not needed."""

import json
import sys
from pathlib import Path

import numpy as np
{imports}
from PIL import Image, ImageOps

folder = Path(__file__).resolve().parent
about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
size, channels = about["input"]["shape"][1], about["preprocessing"]["channels"]


def prepared(path):
    """The picture as in training: upright, opaque, its centred square in uint8 RGB [1 size size 3]."""
    with Image.open(path) as file:
        file.draft(None, (2 * size, 2 * size))
        deep = file.mode.startswith(("I", "F"))
        picture = ImageOps.exif_transpose(file)
    if deep:  # 16-bit grey; files of 32 bits have no range of their own
        picture = Image.fromarray(np.rint(np.asarray(picture, float) / 257).clip(0, 255).astype(np.uint8))
    elif picture.has_transparency_data:
        drawn = picture.convert("RGBA")
        laid = [Image.alpha_composite(Image.new("RGBA", drawn.size, c), drawn) for c in ("white", "black")]
        clear, solid = drawn.getchannel("A").getextrema()
        vanishes = clear < 255 and solid > 0 and laid[0].convert("RGB").convert("L").getextrema()[0] >= 240
        picture = laid[1 if vanishes else 0]
    picture = picture.convert("RGB")
    if channels == 1:
        picture = picture.convert("L")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.array(square.convert("RGB"))[None]


'''

_ONNX = """session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
for path in sys.argv[1:]:
    {outputs} = session.run(None, {{"pictures": prepared(path)}})
"""

_TORCH = """model = torch.export.load(folder / "model.pt2").module()
for path in sys.argv[1:]:
    with torch.no_grad():
        {outputs} = (one.numpy() for one in model(torch.from_numpy(prepared(path))))
"""

_NAME = """    best = int(probability[0].argmax())
    print(f"{path}: {about['classes'][best]} {probability[0, best]:.4f}")
"""

_EMBED = """    print(json.dumps({"name": path, "embedding": embedding[0].tolist()}))
"""

_NEEDS = {"onnx": ("onnxruntime", _ONNX), "torch": ("torch", _TORCH)}


def script(kind: str, classifies: bool) -> tuple[str, str]:
    """Name and text of the script for a model of `kind` "onnx" or "torch".

    `predict.py` prints label and probability of each picture; `embed.py`, where there are no classes, prints a
    line of JSON for each.
    """
    module, run = _NEEDS[kind]
    name = "predict.py" if classifies else "embed.py"
    imported = [f"import {module}"]
    head = _HEAD.format(
        title="Name pictures" if classifies else "Embeddings of pictures",
        name=name,
        needs=f"{module}, numpy and pillow",
        imports="\n".join(imported),
    )
    outputs = "_, probability" if classifies else "(embedding,)"
    return name, head + run.format(outputs=outputs) + (_NAME if classifies else _EMBED)
