"""What a method costs, counted on a real forward pass of the real model and measured on real files.

activations  what a forward pass leaves for the backward pass
products  what a sample's products with d and U theta take, by what is sparse or fast: the table of the rules
passes    a pass of a model, layer by layer: `flops`, which counts those of linear layers and convolutions by the table
          and all else as torch does
meter     torch's own count, of what is computed as it is
sizes     numbers, bytes and files
"""

from subspace.products.flops import Flops
from subspace.products.flops import dct_flops as transform
from subspace.study.training.costs.activations import activation_bytes
from subspace.study.training.costs.model_flops import Read, flops, reads
from subspace.study.training.costs.sizes import file_bytes, file_bytes_dense, stored, tensors
from subspace.study.training.costs.torch_flops import Meter, computed, computed_forward

__all__ = [
    "Flops",
    "Meter",
    "Read",
    "activation_bytes",
    "computed",
    "computed_forward",
    "file_bytes",
    "file_bytes_dense",
    "flops",
    "reads",
    "stored",
    "tensors",
    "transform",
]
