"""The factor reader: a small convolutional classifier of every factor (such as hair colour) of a picture.

It judges edited and generated pictures, so it must be trained on other pictures than those that it judges.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy
from tqdm import tqdm

from ldm_kit.config import Config
from ldm_kit.diffusion.rng import derive_seed
from ldm_kit.memory import Batch, BatchSize

CODE_VERSION = 1  # raise it whenever a trained reader changes: cached ones are then not read
MAX_SIDE = 64  # pixels along each side that the reader sees; larger pictures are averaged down
_GRID = 8  # side of the feature map that the classifiers see, or that of the picture if it is smaller
Factors = Mapping[str, Sequence[str]]


class ReaderConfig(Config):
    """Settings of the training of a `FactorReader`."""

    count: int = Field(default=8000, ge=1, description="most pictures to train on")
    epochs: int = Field(default=8, ge=1, description="times that each is seen")
    batch_size: int = Field(default=64, ge=2, description="pictures in a step")
    width: int = Field(default=32, ge=1, description="channels of the first convolution")
    lr: float = Field(default=3e-3, gt=0, description="highest learning rate of AdamW, on a cosine with warmup")
    noise: float = Field(default=0.1, ge=0, description="most noise added to pictures in -1..1, as a deviation")
    seed: int = Field(default=0, ge=0, description="seed of weights, order and noise")


class FactorReader(nn.Module):
    """Classifier that predicts the value of every factor of a picture, such as "black" for the factor hair colour.

    Args:
        factors: for each factor's name, the values that the factor can have.
        channels: channels of a picture.
        side: pixels along each side of the pictures.
        width: channels of the first convolution.
    """

    def __init__(self, factors: Factors, channels: int, side: int, width: int = 32) -> None:
        super().__init__()
        self.factors = {factor: tuple(values) for factor, values in factors.items()}
        self.side = min(side, MAX_SIDE)
        grid = min(_GRID, self.side)
        widths = [width, 2 * width, 4 * width]
        strides = [2 if self.side >= _GRID * 2 ** (i + 1) else 1 for i in range(3)]
        before = [channels, *widths[:-1]]
        self.layers = nn.Sequential(
            *(_block(*shape) for shape in zip(before, widths, strides, strict=True)),
            nn.AdaptiveAvgPool2d(grid),
            nn.Conv2d(widths[-1], width, 1),
            nn.Flatten(),
            nn.Linear(width * grid**2, 8 * width),
            nn.ReLU(),
            nn.Linear(8 * width, sum(map(len, self.factors.values()))),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return, for each factor, the logits [N, K] of its K values, from pictures x [N, C, R, R] in -1..1."""
        x = adaptive_avg_pool2d(x, self.side) if x.shape[-1] > self.side else x
        return [*self.layers(x).split([len(values) for values in self.factors.values()], dim=1)]

    @torch.no_grad()
    def read(self, pictures: Tensor, batch: Batch = 256) -> Tensor:
        """Return the index of the predicted value of each of F factors, int64 [N, F].

        Args:
            pictures: uint8 [N, C, R, R].
            batch: most pictures in one forward pass.
        """
        self.eval()
        device = next(self.parameters()).device

        def numbers(x: Tensor) -> Tensor:
            return torch.stack([one.argmax(1) for one in self(_unit(x.to(device)))], dim=1).cpu()

        nothing = torch.zeros(0, len(self.factors), dtype=torch.long)
        return torch.cat([nothing, *BatchSize.of(batch).map(pictures, numbers)])

    def values(self, pictures: Tensor) -> list[dict[str, str]]:
        """Return for each of the pictures, uint8 [N, C, R, R], a dict of the predicted values by the factors' names."""
        options = self.factors.items()
        return [
            {factor: values[i] for (factor, values), i in zip(options, row, strict=True)}
            for row in self.read(pictures).tolist()
        ]


def _block(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


def train_reader(
    reader: FactorReader, pictures: Callable[[Sequence[int]], Tensor], labels: Tensor, config: ReaderConfig
) -> FactorReader:
    """Train a reader by cross-entropy, summed over factors, and return it in evaluation mode.

    The order of the pictures and the noise added to them are functions of the seed and the training step alone.

    Args:
        reader: the reader, with random weights.
        pictures: function that returns the pictures with the given indices, uint8 [B, C, R, R].
        labels: int64 [N, F], for each picture the index of each factor's true value; -1: not known, and left out of
            the loss.
        config: number of epochs, learning rate, noise and seed.
    """
    device = next(reader.parameters()).device
    optimizer = torch.optim.AdamW(reader.parameters(), lr=config.lr, weight_decay=1e-2)
    size = min(config.batch_size, len(labels))
    steps = config.epochs * (len(labels) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, max(steps, 2), pct_start=0.2)
    reader.train()
    for step in tqdm(range(steps), desc="training the reader", unit="step"):
        epoch, batch = divmod(step, len(labels) // size)
        draw = torch.Generator().manual_seed(derive_seed(config.seed, "reader order", epoch))
        rows = torch.randperm(len(labels), generator=draw)[batch * size : (batch + 1) * size]
        x = _noisy(_unit(pictures(rows.tolist())), config, step)
        loss = _loss(reader(x.to(device)), labels[rows].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return reader.eval()


def _unit(pictures: Tensor) -> Tensor:
    return pictures.float() / 127.5 - 1


def _noisy(x: Tensor, config: ReaderConfig, step: int) -> Tensor:
    """Add normal noise to pictures x [B, C, R, R]; seeded by `config.seed` and the training step.

    The noise of each picture has its own standard deviation, which is uniform between 0 and `config.noise`.
    """
    draw = torch.Generator().manual_seed(derive_seed(config.seed, "reader noise", step))
    scale = torch.rand(len(x), 1, 1, 1, generator=draw) * config.noise
    return x + scale * torch.randn(x.shape, generator=draw)


def _loss(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Return the sum over F factors of the mean cross-entropy over the pictures whose value is known.

    Args:
        logits: for each factor, the logits [B, K] of its K values.
        labels: int64 [B, F], the index of each factor's true value; -1: not known.
    """
    losses = [
        cross_entropy(one[labelled], column[labelled]) if bool((labelled := column >= 0).any()) else one.sum() * 0
        for one, column in zip(logits, labels.T, strict=True)
    ]
    return torch.stack(losses).sum()
