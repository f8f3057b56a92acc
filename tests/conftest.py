"""Settings of all tests, random experts, and tiny modalities on which a bound can be worked out by hand."""

import dataclasses
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

from analysis import drawing
from mmjsd.config import ModelConfig, ObjectiveConfig
from mmjsd.data import Data, Modality, load
from mmjsd.gaussian import Gaussian
from mmjsd.model import MultimodalVae
from mmjsd.networks import NETWORKS, Networks

settings.register_profile("project", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("project")
torch.set_num_threads(1)

TINY = tuple(
    Modality(name=name, kind="image", shape=(1, 1, size), style_weight=style_weight)
    for name, size, style_weight in (
        ("red", 6, 1.0),
        ("green", 3, 5.0),
        ("blue", 4, 0.5),
        ("grey", 2, 1.0),
        ("white", 5, 2.0),
    )
)
TINY_SCALE = 0.5
"""Standard deviation of the tiny modalities' normal likelihood."""

TinyModel = Callable[..., MultimodalVae]

LONGEST = ("test_study", "test_pack", "test_report", "test_metrics")
"""Files that take longest. They are handed out first, so that none runs by itself at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@st.composite
def weighted_experts(draw: st.DrawFn, min_experts: int = 1) -> tuple[Gaussian, Tensor]:
    """Float64 experts `[expert, batch, latent]` and positive weights that sum to one."""
    expert = draw(st.integers(min_experts, 4))
    batch, latent = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    mu, logvar = 3 * torch.randn(2, expert, batch, latent, generator=rng, dtype=torch.float64)
    weights = torch.rand(expert, generator=rng, dtype=torch.float64) + 0.01
    return Gaussian(mu, logvar), weights / weights.sum()


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def seeded(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_data(model, batch, seed=0) -> dict[str, torch.Tensor]:
    rng = seeded(seed)
    x = {}
    for spec in model.specs:
        if spec.kind == "text":
            x[spec.name] = torch.randint(71, (batch, *spec.shape), generator=rng)
        else:
            x[spec.name] = torch.rand(batch, *spec.shape, generator=rng)
    return x


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _tiny_networks(size: int) -> Networks:
    return dataclasses.replace(
        NETWORKS["mnist"],
        encoder=lambda width: nn.Sequential(nn.Flatten(), nn.Linear(size, width(5)), nn.Tanh()),
        num_features=lambda width: width(5),
        decoder=lambda latent, width: nn.Sequential(nn.Linear(latent, size), nn.Unflatten(1, (1, 1, size))),
        likelihood=lambda loc: Independent(Normal(loc, TINY_SCALE), 3),
        mean=lambda loc: loc,
    )


@pytest.fixture(autouse=True, scope="session")
def _plain_fonts() -> Iterator[None]:
    """Figures as PDF by fonts that take a quarter of the time to embed; the test of fonts has others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(drawing.STYLE, "pdf.fonttype", 3)
        yield


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> TinyModel:
    """Build a model of the first `num_modalities` tiny modalities, with posteriors far from the prior."""
    for modality in TINY:
        monkeypatch.setitem(NETWORKS, modality.name, _tiny_networks(modality.size))

    def build(num_modalities: int = 3, style_dim: Any = 2, **objective: Any) -> MultimodalVae:
        torch.manual_seed(num_modalities)
        sizes = ModelConfig(content_dim=3, style_dim=style_dim)
        model = MultimodalVae(TINY[:num_modalities], sizes, ObjectiveConfig(**objective))
        with torch.no_grad():
            for parameter in model.heads.parameters():
                parameter.mul_(3)
        return model

    return build


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> TinyModel:
    """Build a model whose encoders and decoders are linear and likelihoods N(., 1): log p(x) is known."""
    for spec in TINY:
        networks = dataclasses.replace(
            _tiny_networks(spec.size),
            encoder=lambda width: nn.Flatten(),
            num_features=lambda width, size=spec.size: size,
            likelihood=lambda loc: Independent(Normal(loc, 1.0), 3),
        )
        monkeypatch.setitem(NETWORKS, spec.name, networks)

    def build(num_modalities: int, style_dim: int, **objective: Any) -> MultimodalVae:
        modalities = TINY[:num_modalities]
        ones = {spec.name: 1.0 for spec in modalities}
        config = ObjectiveConfig(beta=1, reconstruction_weights=ones, style_weights=ones, **objective)
        return MultimodalVae(modalities, ModelConfig(content_dim=2, style_dim=style_dim), config)

    return build


def linear_log_likelihood(model: MultimodalVae, x: Mapping[str, Tensor]) -> Tensor:
    """log p(x) of some modalities, x_j = W_j (c, s_j) + b_j + noise, with all latents integrated out."""
    content = model.config.content_dim
    layers: dict[str, Any] = {name: model.decoders[name][0] for name in x}  # type: ignore[index]
    shared = torch.cat([layer.weight[:, :content] for layer in layers.values()])
    own = torch.block_diag(*(layer.weight[:, content:] for layer in layers.values()))
    covariance = shared @ shared.T + own @ own.T + torch.eye(len(shared))
    mean = torch.cat([layer.bias for layer in layers.values()])
    pixels = torch.cat([each.flatten(1) for each in x.values()], dim=1)
    return MultivariateNormal(mean, covariance).log_prob(pixels)


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Data]:
    """The data set `digits`, drawn anew and not read from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMJSD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield load("digits")


@pytest.fixture
def compile_latex(tmp_path: Path) -> Callable[[Sequence[Path], str], None]:
    """Compile tables as one document, each followed by `between`; skips where there is no LaTeX."""
    if shutil.which("pdflatex") is None:
        pytest.skip("needs LaTeX")

    def compile_tables(tables: Sequence[Path], between: str = "") -> None:
        inputs = "\n".join(f"\\input{{{path.as_posix()}}}{between}" for path in tables)
        preamble = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
        (tmp_path / "all.tex").write_text(preamble + inputs + r"\end{document}")
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
        assert "Overfull" not in done.stdout

    return compile_tables
