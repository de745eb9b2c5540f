"""The training step in plain NumPy, written to be read: what the native engine must compute, bit for bit.

Nothing is packed, tiled or recomputed here, and every array has its shape beside it. Integers are int64, so that no
sum can overflow; where the engine rounds in float32 this does too, in the same order. It is slow and takes the memory
that the engine saves; its only uses are to be compared with and to be understood. Read ``engine`` first: it is the
step, and it says in one place what ``maps`` (convolution and pooling), ``norm`` (batch norm), ``optimizers``,
``randomness`` and ``real_math`` are for; ``residual`` is the step of residual networks, with ``fixed_point``;
``published`` and ``published_residual`` are the algorithms that it is compared with.

Letters: B = batch size, N = output channels of a block, C = its input channels, P x Q = the map of its products,
J = B x positions = numbers that one channel is normalised over, K = weights of an output channel (fan-in). A dense
layer is the convolution whose kernel covers its whole input map.

Source: Wang et al., "Enabling Binary Neural Network Training on the Edge", arXiv:2102.04270, Algorithm 2, with three
deviations: the l1 batch-norm gradient is the exact derivative, the straight-through mask |x| <= 1 is applied, and
gradients are 8-bit integers with stochastic rounding instead of float16 and signs.
"""

from bnncore.reference.engine import ReferenceEngine
from bnncore.reference.maps import (
    convolve,
    input_gradient,
    max_pool,
    patches,
    route_to_arg_max,
    weight_gradient,
)
from bnncore.reference.norm import l1_batch_norm, l1_batch_norm_gradient
from bnncore.reference.randomness import random_halves, random_stream, random_words, round_stochastic
from bnncore.reference.real_math import exp, log
from bnncore.reference.residual import ResidualReference

__all__ = [
    "ReferenceEngine",
    "ResidualReference",
    "convolve",
    "exp",
    "input_gradient",
    "l1_batch_norm",
    "l1_batch_norm_gradient",
    "log",
    "max_pool",
    "patches",
    "random_halves",
    "random_stream",
    "random_words",
    "round_stochastic",
    "route_to_arg_max",
    "weight_gradient",
]
