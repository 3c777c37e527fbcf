"""The methods: one file per paper, and the table that names them."""

from selftaught.core.types import Method
from selftaught.methods.barlow import BarlowTwins
from selftaught.methods.bmg import BMG
from selftaught.methods.bmssl import BMSSL
from selftaught.methods.byol import BYOL
from selftaught.methods.cactus import CACTUs
from selftaught.methods.clip import CLIP
from selftaught.methods.dino import DINO
from selftaught.methods.fcrl import FCRL
from selftaught.methods.imaml import IMAML
from selftaught.methods.lasium import LASIUM
from selftaught.methods.learnaug import LearnedAugmentation
from selftaught.methods.mae import MAE
from selftaught.methods.maml import MAML
from selftaught.methods.maxl import MAXL
from selftaught.methods.metacontrast import MetaContrast
from selftaught.methods.metaopt import MetaOptNet
from selftaught.methods.moco import MoCo
from selftaught.methods.neuronml import NeuronML
from selftaught.methods.nnclr import NNCLR
from selftaught.methods.protoclr import ProtoCLR
from selftaught.methods.protonet import ProtoNet
from selftaught.methods.psco import PsCo
from selftaught.methods.r2d2 import R2D2
from selftaught.methods.reptile import Reptile
from selftaught.methods.simclr import SimCLR
from selftaught.methods.simsiam import SimSiam
from selftaught.methods.swav import SwAV
from selftaught.methods.umtra import UMTRA
from selftaught.methods.vicreg import VICReg

METHODS: dict[str, type[Method]] = {
    "bmssl": BMSSL,
    "simclr": SimCLR,
    "byol": BYOL,
    "vicreg": VICReg,
    "barlow": BarlowTwins,
    "moco": MoCo,
    "protoclr": ProtoCLR,
    "umtra": UMTRA,
    "protonet": ProtoNet,
    "maml": MAML,
    "imaml": IMAML,
    "neuronml": NeuronML,
    "nnclr": NNCLR,
    "r2d2": R2D2,
    "swav": SwAV,
    "reptile": Reptile,
    "dino": DINO,
    "bmg": BMG,
    "maxl": MAXL,
    "metacontrast": MetaContrast,
    "metaopt": MetaOptNet,
    "simsiam": SimSiam,
    "psco": PsCo,
    "mae": MAE,
    "cactus": CACTUs,
    "learnaug": LearnedAugmentation,
    "lasium": LASIUM,
    "clip": CLIP,
    "fcrl": FCRL,
}
"""Name on the command line -> frozen dataclass. A new method is one file and one line here."""

__all__ = [
    "BMSSL",
    "BYOL",
    "BarlowTwins",
    "DINO",
    "IMAML",
    "MAML",
    "MAXL",
    "METHODS",
    "MetaContrast",
    "MetaOptNet",
    "Method",
    "MoCo",
    "NNCLR",
    "NeuronML",
    "ProtoCLR",
    "ProtoNet",
    "R2D2",
    "Reptile",
    "SimCLR",
    "SwAV",
    "UMTRA",
    "VICReg",
    "BMG",
    "SimSiam",
    "PsCo",
    "MAE",
    "CACTUs",
    "LearnedAugmentation",
    "LASIUM",
    "CLIP",
    "FCRL",
]
