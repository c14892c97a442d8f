"""Networks: a backbone that gives features, and a last layer that grows by a row for each new class."""

import copy
import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional

from lifelist.exporter.errors import BadSetting

_PROBE_CLASSES = 7  # torchvision models are built with this many outputs, so that the layer to remove can be told


class Network(nn.Module):
    """A backbone and its last layer. Calling it gives features; `logits` goes on to the classes."""

    def __init__(self, backbone: nn.Module, dim: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = _unstarted_linear(dim, classes)

    @property
    def dim(self) -> int:
        """Numbers in a feature."""
        return self.head.in_features

    @property
    def classes(self) -> int:
        """Rows of the last layer."""
        return self.head.out_features

    def forward(self, images: Tensor) -> Tensor:
        """Features, B×D. images: B×3×S×S float, normalised."""
        features: Tensor = self.backbone(images)
        return features

    features = forward

    def logits(self, images: Tensor) -> Tensor:
        """Raw logits, B×C. images: B×3×S×S float, normalised."""
        logits: Tensor = self.head(self(images))
        return logits

    def copy(self) -> "Network":
        """The network as it is now, untouched by what happens to this one later."""
        return copy.deepcopy(self)

    def for_passes(self) -> "Network":
        """A copy in bfloat16 that can only be asked: each batch-norm is folded into the convolution before it.

        Half as quick again for small images as this one under autocast, and the same up to rounding.
        """
        found = self.copy().eval().requires_grad_(False)
        found.backbone = fuse(found.backbone)
        return found.to(torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def grow(self, new: int, generator: torch.Generator) -> None:
        """Append `new` rows with the layer's usual initial values; weight *and* bias of the old rows stay as they are.

        The last layer is another object afterwards: make the optimiser after growing, not before.
        """
        old = self.head
        head = _unstarted_linear(old.in_features, old.out_features + new).to(old.weight.device)
        start_linear(head, generator)
        with torch.no_grad():
            head.weight[: old.out_features] = old.weight
            head.bias[: old.out_features] = old.bias
        self.head = head


def _unstarted_linear(dim: int, classes: int) -> nn.Linear:
    """A linear layer that took no random numbers; `start_linear` gives it its values."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, dim, classes)  # type: ignore[no-untyped-call]
    return layer


def start_linear(layer: nn.Linear, generator: torch.Generator) -> None:
    """torch's own initial values of a linear layer, drawn from `generator` (on the CPU), not from the global state."""
    bound = layer.in_features**-0.5
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias):
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


class _Block(nn.Module):
    """Two 3×3 convolutions around an identity shortcut; where the shape changes, option A (He et al. 2015, 4.2)."""

    def __init__(self, wide_in: int, wide: int, stride: int, *, last_relu: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide_in, wide, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.stride, self.wider, self.last_relu = stride, wide - wide_in, last_relu

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.wider:
            x = functional.pad(x, (0, 0, 0, 0, self.wider // 2, self.wider - self.wider // 2))
        return functional.relu(x + y) if self.last_relu else x + y


class ResNet32(nn.Module):
    """ResNet-32 for small images: 3 stages of 5 blocks, 16/32/64 wide, 64 features (He et al. 2015, section 4.2).

    last_relu=False leaves out the ReLU after the last block, as iCaRL does: features may be negative.
    """

    def __init__(self, *, last_relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        shapes = [(16, 16, 1)] * 5 + [(16, 32, 2)] + [(32, 32, 1)] * 4 + [(32, 64, 2)] + [(64, 64, 1)] * 4
        last = len(shapes) - 1
        self.blocks = nn.Sequential(
            *[_Block(a, b, stride, last_relu=last_relu or k < last) for k, (a, b, stride) in enumerate(shapes)]
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(functional.relu(self.bn(self.conv(x)))).mean((2, 3))  # type: ignore[no-any-return]


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "resnet32": ResNet32,
    "resnet32-icarl": lambda: ResNet32(last_relu=False),
}
_SIZED: Mapping[str, Callable[[int], dict[str, Any]]] = {  # torchvision families that must be told the image's size
    "vit_": lambda size: {"image_size": size},
    "maxvit": lambda size: {"input_size": (size, size)},
    "googlenet": lambda size: {"aux_logits": False, "init_weights": True},
    "inception": lambda size: {"aux_logits": False, "init_weights": True},
}


def names() -> list[str]:
    """Every network that `build` makes."""
    return [*NETWORKS, *torchvision.models.list_models(module=torchvision.models)]


def build(name: str, *, classes: int, image_size: int, seed: int = 0, pretrained: str = "") -> Network:
    """A network with `classes` rows, in training mode; the same seed gives the same weights, whatever ran before.

    pretrained: a local file of weights for the backbone (see `load_pretrained`). BadSetting if there is no such
    network, if it does not take images of image_size×image_size, or if the file does not fit.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=3, cutoff=0.4)
        raise BadSetting(
            f"network {name!r} does not exist; there are {', '.join(NETWORKS)} and the classification models of "
            f"torchvision{', such as ' + ', '.join(near) if near else ''}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            removed, backbone = ((), NETWORKS[name]()) if name in NETWORKS else _from_torchvision(name, image_size)
            dim = _feature_size(backbone, image_size)
        except (RuntimeError, ValueError, AssertionError, ZeroDivisionError) as error:
            raise BadSetting(
                f"network {name!r} does not take images of {image_size}×{image_size} pixels ({error}); "
                "choose another image_size or network"
            ) from error
        network = Network(backbone, dim, classes)
    start_linear(network.head, torch.Generator().manual_seed(seed))
    if pretrained:
        load_pretrained(backbone, Path(pretrained), removed)
    return network


def _from_torchvision(name: str, image_size: int) -> tuple[tuple[str, ...], nn.Module]:
    """(names of what was removed, a torchvision model without its last layer), whatever that layer is called there."""
    extra = next((sized(image_size) for prefix, sized in _SIZED.items() if name.startswith(prefix)), {})
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=_PROBE_CLASSES, **extra)
    for path, module in reversed(list(model.named_modules())):
        if _PROBE_CLASSES in (getattr(module, "out_features", 0), getattr(module, "out_channels", 0)):
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.Identity())
            return (path,), model
    raise BadSetting(f"network {name!r} has no layer that ends in classes")


def _feature_size(backbone: nn.Module, image_size: int) -> int:
    backbone.eval()
    with torch.no_grad():
        features = backbone(torch.zeros(2, 3, image_size, image_size))
    backbone.train()
    if features.ndim != 2:
        raise ValueError(f"it gives features of shape {tuple(features.shape)} where 2×D is needed")
    return int(features.shape[1])


def load_pretrained(backbone: nn.Module, file: Path, removed: Sequence[str] = ()) -> None:
    """Copy weights from a local file into `backbone`: safetensors, or a torch file read with weights_only.

    The file may hold a plain torchvision model, whose last layer is left out, or a checkpoint of ours. BadSetting
    names what is missing, unknown or of another shape.
    """
    if not file.is_file():
        raise BadSetting(f"pretrained names {file}, which is not a file")
    try:
        if file.suffix == ".safetensors":
            found: Any = safetensors.torch.load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the readers make of foreign bytes, the file is at fault
        raise BadSetting(
            f"pretrained names {file}, which holds neither safetensors nor plain weights: {error}"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise BadSetting(f"pretrained names {file}, which does not hold named tensors")
    prefix = "backbone." if any(key.startswith("backbone.") for key in found) else ""
    wanted = backbone.state_dict()
    given = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    given = {k: v for k, v in given.items() if not any(k.startswith(f"{path}.") for path in removed)}
    missing = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    unknown = [key for key in given if key not in wanted and not key.startswith(("aux", "AuxLogits"))]
    shaped = [k for k in wanted if k in given and wanted[k].shape != given[k].shape]
    if missing or unknown or shaped:
        raise BadSetting(
            f"{file} does not fit the network: it lacks {missing[:5]}, has unknown {unknown[:5]}, "
            f"and other shapes of {shaped[:5]} ({len(missing)}, {len(unknown)} and {len(shaped)} in all)"
        )
    backbone.load_state_dict({key: given.get(key, wanted[key]) for key in wanted})
