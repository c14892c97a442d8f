"""Features, class means, and accuracy by class: everything that looks at a network without changing it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lifelist.training.loop import Run
from lifelist.training.network import Network
from lifelist.training.pixels import Pixels
from lifelist.training.threads import side_by_side

BATCH = 128  # images: a whole class at once would not fit a GPU (methods.md I10) …
LARGEST = 2**19  # … and pixels for each core of a CPU, whose memory would not hold what networks make of large images


def features(network: Network, pixels: Pixels | Tensor, run: Run, *, mirrored: bool = False) -> Tensor:
    """N×D float32 on the CPU, raw. pixels: N×S×S×3 uint8. In eval mode, and without augmentation (B2, B3).

    In the network's own precision: what only ranks images asks a copy of it (Run.asked); whatever is measured or served
    takes float32.
    """
    was_training = network.training
    network.eval()

    dtype = network.head.weight.dtype
    raw = torch.empty(len(pixels), network.dim, device=run.device)  # parts of their own would keep heaps from shrinking

    def fill(part: slice) -> None:
        with torch.no_grad():
            x = run.normalised(pixels[part]).to(dtype)
            raw[part] = network(x.flip(3) if mirrored else x)

    cores, most = 1, BATCH
    if run.device.type == "cpu":
        cores, most = torch.get_num_threads(), min(BATCH, max(1, LARGEST // pixels.shape[1] ** 2))
    size = max(1, min(most, -(-len(pixels) // cores)))
    parts = [slice(start, start + size) for start in range(0, len(pixels), size)]
    if cores > 1:
        side_by_side(fill, parts, cores)
    else:
        for part in parts:
            fill(part)
    network.train(was_training)
    return raw.cpu()


@torch.no_grad()
def head_logits(network: Network, raw: Tensor) -> Tensor:
    """N×C float32 on the CPU, from raw features N×D."""
    head = network.head
    return functional.linear(raw, head.weight.float().cpu(), head.bias.float().cpu())


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays one, rather than becoming NaN."""
    return functional.normalize(rows, dim=-1)


def class_mean(plain: Tensor, mirrored: Tensor | None = None) -> Tensor:
    """normalise((mean of unit features + mean of the mirrored images' unit features) / 2), D (iCaRL's code; I3).

    plain, mirrored: N×D raw features of a class's exemplars and of their mirror images, None to leave those out.
    """
    mean = unit(plain).mean(0)
    return unit(mean if mirrored is None else (mean + unit(mirrored).mean(0)) / 2)


def by_linear(logits: Tensor) -> Tensor:
    """N int64: the row with the largest logit."""
    return logits.argmax(1)


def by_nearest_mean(raw: Tensor, means: Tensor) -> Tensor:
    """N int64: the class mean closest to each unit feature; for unit vectors, the largest product (iCaRL, eq. 2)."""
    return (unit(raw) @ means.T).argmax(1)


def accuracy(predicted: Tensor, rows: Tensor, class_ids: Sequence[int], n: int) -> dict[str, Any]:
    """{"all", "old", "new": share of right answers, or None without images; "per_class": {class id: share};
    "confusion": {class id: {answered class id: images}}, without zeros}.

    predicted, rows: N int64 rows of the last layer; row k answers class_ids[k]; the first n are old.
    """
    right = (predicted == rows).double()

    def share(which: Tensor) -> float | None:
        return round(float(right[which].mean()), 6) if bool(which.any()) else None

    confusion: dict[str, dict[str, int]] = {str(class_id): {} for class_id in class_ids}
    pairs, counts = torch.unique(torch.stack([rows, predicted]), dim=1, return_counts=True)
    for row, answered, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        confusion[str(class_ids[row])][str(class_ids[answered])] = count
    return {
        "all": share(rows >= 0),
        "old": share(rows < n),
        "new": share(rows >= n) if n else None,
        "per_class": {str(class_id): share(rows == row) for row, class_id in enumerate(class_ids)},
        "confusion": confusion,
    }


def forgetting(matrix: Sequence[Sequence[float | None]]) -> float | None:
    """How much is lost of the best that each earlier increment's classes ever had, on average (Chaudhry et al. 2018).

    matrix[k][j]: accuracy on the classes of increment j after increment k, for j ≤ k.
    """
    if len(matrix) < 2:
        return None
    last, drops = matrix[-1], []
    for j in range(len(matrix) - 1):
        seen = [row[j] for row in matrix[j:-1]]
        best = max((value for value in seen if value is not None), default=None)
        final = last[j]
        if best is not None and final is not None:
            drops.append(best - final)
    return sum(drops) / len(drops) if drops else None


def alike(
    predicted: Tensor, rows: Tensor, new: Sequence[int], *, least_images: int = 8, most_right: float = 1.25
) -> list[tuple[int, int, int, int]]:
    """Pairs of classes that are taken for one another as often as by chance: (row, row, images confused, images).

    A pair is told if one of it is in `new`, it has `least_images` together and two of each, and

    - nine tenths of its images are answered by one of the two: it is this pair that is confused, and with nothing else;
    - which of the two they are hardly decides which of them is answered: the shares that are right of each add up to
      `most_right`, no more. By chance, or if all are taken for one, they add up to 1; a sound classifier is close to 2;
    - of the other images, seven tenths are right, and there are as many: a network that knows little confuses anything.

    predicted, rows: N int64 rows of the last layer.
    """
    classes = 1 + int(torch.cat([predicted, rows]).max()) if len(rows) else 0
    counts = torch.bincount(rows * classes + predicted, minlength=classes**2).view(classes, classes)
    shown, right = counts.sum(1).tolist(), counts.diagonal().tolist()
    found = []
    for a, b in (counts + counts.T).triu(1).nonzero().tolist():  # of all pairs, those that were confused at all
        images, others = shown[a] + shown[b], len(rows) - shown[a] - shown[b]
        if not {a, b} & set(new) or images < least_images or min(shown[a], shown[b]) < 2 or others < least_images:
            continue
        confused = int(counts[a, b] + counts[b, a])
        only_this_pair = right[a] + right[b] + confused >= 0.9 * images
        by_chance = right[a] / shown[a] + right[b] / shown[b] <= most_right
        knows_the_rest = sum(right) - right[a] - right[b] >= 0.7 * others
        if only_this_pair and by_chance and knows_the_rest:
            found.append((a, b, confused, images))
    return found


def worst_group(per_class: Mapping[str, float | None], heads: Sequence[Sequence[int]]) -> float | None:
    """The lowest mean accuracy of an increment's classes: 0 means that one has collapsed (methods.md B18)."""
    groups = [[v for c in ids if (v := per_class.get(str(c))) is not None] for ids in heads]
    return min((sum(group) / len(group) for group in groups if group), default=None)
