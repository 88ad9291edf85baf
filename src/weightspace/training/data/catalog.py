"""What is known about each data set: classes, sizes, where it is published, and its check sums.

Adding a data set that comes in a format the readers know is one entry of `DATASETS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from weightspace.training.data.kind import Kind


@dataclass(frozen=True)
class Remote:
    """One file to download.

    Attributes:
        file_name: Name it gets on disk.
        urls: Places that publish it, tried in this order.
        checksum: `"sha256:..."` or `"md5:..."` of the file as published.
    """

    file_name: str
    urls: tuple[str, ...]
    checksum: str


@dataclass(frozen=True)
class DatasetInfo:
    """What is known about a data set before it is read.

    Attributes:
        name: Name for `load_data`.
        title: Name for titles of tables and plots.
        family: Its own file format, beside parquet and arrow files; `"text"` for everything that is text.
        class_names: In the order of the labels; empty where the files decide.
        shape: `(channels, height, width)`; `None` where the files decide.
        train_size: Training images of the published data set; 0 where the files decide.
        test_size: Test images, likewise.
        remotes: Files to download.
        checksums: sha256 of the decompressed IDX files, by file name.
        system_folders: Where operating-system packages put it.
        system_package: How to install such a package, as a command.
        hub_names: Names on the Hugging Face hub, the present one first.
        vocabulary: Of a published text: number of different tokens by level, the unknown one included.
    """

    name: str
    title: str
    family: Literal["digits", "idx", "cifar", "folder", "text"]
    class_names: tuple[str, ...] = ()
    shape: tuple[int, int, int] | None = None
    train_size: int = 0
    test_size: int = 0
    remotes: tuple[Remote, ...] = ()
    checksums: Mapping[str, str] = field(default_factory=dict[str, str])
    system_folders: tuple[str, ...] = ()
    system_package: str = ""
    hub_names: tuple[str, ...] = ()
    vocabulary: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def kind(self) -> Kind:
        """What the data set consists of."""
        return "text" if self.family == "text" else "images"


def _idx_remotes(mirrors: tuple[str, ...], checksums: Mapping[str, str]) -> tuple[Remote, ...]:
    return tuple(
        Remote(f"{name}.gz", tuple(f"{mirror}{name}.gz" for mirror in mirrors), checksum)
        for name, checksum in checksums.items()
    )


_DIGITS = tuple("0123456789")

_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# The official order of the fine labels is the alphabetical one.
_CIFAR100_TEXT = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""
_CIFAR100 = tuple(_CIFAR100_TEXT.split())

_MNIST_GZ = {
    "train-images-idx3-ubyte": "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}

_FASHION_GZ = {
    "train-images-idx3-ubyte": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "md5:25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "md5:bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "md5:bb300cfdad3c16e7a12a480ee83cd310",
}

_ENTRIES = (
    DatasetInfo("digits", "Digits 8x8", "digits", _DIGITS, (1, 8, 8), 1297, 500),
    DatasetInfo(
        "mnist",
        "MNIST",
        "idx",
        _DIGITS,
        (1, 28, 28),
        60_000,
        10_000,
        remotes=_idx_remotes(
            ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
            _MNIST_GZ,
        ),
        checksums={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        system_folders=("/usr/share/datasets/mnist",),
        hub_names=("ylecun/mnist", "mnist"),
    ),
    DatasetInfo(
        "fashion-mnist",
        "Fashion-MNIST",
        "idx",
        _FASHION,
        (1, 28, 28),
        60_000,
        10_000,
        remotes=_idx_remotes(
            (
                "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            ),
            _FASHION_GZ,
        ),
        checksums={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        system_folders=("/usr/share/datasets/fashion-mnist",),
        system_package="apt-get install dataset-fashion-mnist",
        hub_names=("zalando-datasets/fashion_mnist", "fashion_mnist"),
    ),
    DatasetInfo(
        "cifar10",
        "CIFAR-10",
        "cifar",
        _CIFAR10,
        (3, 32, 32),
        50_000,
        10_000,
        remotes=(
            Remote(
                "cifar-10-binary.tar.gz",
                ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
                "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
        ),
        hub_names=("uoft-cs/cifar10", "cifar10"),
    ),
    DatasetInfo(
        "cifar100",
        "CIFAR-100",
        "cifar",
        _CIFAR100,
        (3, 32, 32),
        50_000,
        10_000,
        remotes=(
            Remote(
                "cifar-100-binary.tar.gz",
                ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
                "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            ),
        ),
        hub_names=("uoft-cs/cifar100", "cifar100"),
    ),
    DatasetInfo("folder", "image folder", "folder"),
    DatasetInfo("verses", "103 verses", "text"),
    DatasetInfo(
        "bible-kjv",
        "King James Bible",
        "text",
        system_package="apt-get install bible-kjv",
        vocabulary={"character": 64},
    ),
    DatasetInfo(
        "wikitext-2",
        "WikiText-2",
        "text",
        hub_names=("Salesforce/wikitext", "wikitext"),
        vocabulary={"word": 33_278},
    ),
    DatasetInfo(
        "penn-treebank",
        "Penn Treebank",
        "text",
        hub_names=("ptb-text-only/ptb_text_only", "ptb_text_only"),
        vocabulary={"word": 10_000},
    ),
    DatasetInfo("text", "text", "text"),
)

DATASETS: Mapping[str, DatasetInfo] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""Every data set that `load_data` (images) and `load_text` know, by name."""
