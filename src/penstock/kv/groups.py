"""KV groups: which layers share blocks, and how one pool of bytes serves all of them.

A *group* is a set of layers that must keep the same tokens: all of them (full attention) or the
last W (sliding window). Layers are split into groups of equal count, the last of a kind padded, so
that a block of any group has the same size in bytes and one pool serves all (Jenga,
arXiv:2503.18292). Layout of one block, row-major:

    [layer in group][0: K, 1: V][token in block][kv head][head dim]
"""

from __future__ import annotations

from msgspec import Struct

from penstock.errors import ModelRefused


class LayerKV(Struct, frozen=True):
    """What one layer keeps. window: None for full attention, else W: position p sees p-W+1 … p."""

    kv_heads: int
    head_dim: int
    window: int | None = None


class Group(Struct, frozen=True):
    """layers: indices into the model's layers; index i of the group is `layers[i]`."""

    window: int | None
    layers: tuple[int, ...]


class KVLayout(Struct, frozen=True):
    """The shape of the pool. `layer_place[l]` is (group, index within the group) of layer l."""

    groups: tuple[Group, ...]
    layers_per_group: int
    block_size: int
    kv_heads: int
    head_dim: int
    itemsize: int
    layer_place: tuple[tuple[int, int], ...]

    @property
    def head_bytes(self) -> int:
        """Of one token's key, or value, of one head. int8 (itemsize 1) is padded to whole words and followed
        by a float32 scale."""
        return -(-self.head_dim // 4) * 4 + 4 if self.itemsize == 1 else self.head_dim * self.itemsize

    @property
    def block_bytes(self) -> int:
        return self.layers_per_group * 2 * self.block_size * self.kv_heads * self.head_bytes

    def bytes_for(self, num_tokens: int) -> int:
        """Bytes that one request of `num_tokens` needs at most (a window plus one block each)."""
        return self.blocks_for(num_tokens) * self.block_bytes

    def blocks_for(self, num_tokens: int, chunk: int = 1) -> int:
        """Blocks over all groups that a request of `num_tokens` holds at its largest, when at most
        `chunk` tokens beyond the committed ones are reserved at once (steps in flight included)."""
        total = 0
        for group in self.groups:
            blocks = -(-num_tokens // self.block_size)
            if group.window is not None:
                # W - 1 committed tokens and the chunk, at the worst alignment to block borders.
                span = group.window - 1 + max(chunk, 1)
                blocks = min(blocks, -(-(span - 1) // self.block_size) + 1)
            total += blocks
        return total


def plan_layout(layers: list[LayerKV], block_size: int, itemsize: int) -> KVLayout:
    """Split `layers` into groups of equal count, each of one kind (full, or one window).

    The count is between half of the smallest kind's and all of it (a smaller one means many groups,
    each with a block table of its own), the one that pads fewest layers, the largest of those.
    Heads and head size must agree over all layers (ModelRefused otherwise).
    """
    shapes = {(layer.kv_heads, layer.head_dim) for layer in layers}
    if len(shapes) != 1:
        raise ModelRefused(
            f"layers keep KV of {len(shapes)} shapes (kv_heads, head_dim): {sorted(shapes)}; "
            "one pool of blocks serves exactly one"
        )
    kinds: dict[int | None, list[int]] = {}
    for index, layer in enumerate(layers):
        kinds.setdefault(layer.window, []).append(index)
    counts = [len(members) for members in kinds.values()]
    candidates = range(-(-min(counts) // 2), min(counts) + 1)
    per_group = min(candidates, key=lambda size: (sum(-count % size for count in counts), -size))
    groups: list[Group] = []
    place: dict[int, tuple[int, int]] = {}
    for window, members in kinds.items():
        for first in range(0, len(members), per_group):
            chunk = members[first : first + per_group]
            for i, layer_index in enumerate(chunk):
                place[layer_index] = (len(groups), i)
            groups.append(Group(window=window, layers=tuple(chunk)))
    kv_heads, head_dim = shapes.pop()
    return KVLayout(
        groups=tuple(groups),
        layers_per_group=per_group,
        block_size=block_size,
        kv_heads=kv_heads,
        head_dim=head_dim,
        itemsize=itemsize,
        layer_place=tuple(place[i] for i in range(len(layers))),
    )
