"""Draws from several joint posteriors by the same noise: what comes out the same is decoded once.

A mixture takes, sample by sample, the draw of one of its experts. That is another posterior's draw where the
expert is a posterior itself, or another mixture's expert, too: of the eleven posteriors of three modalities
seven are distinct.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmjsd.gaussian import Gaussian, Mixture, stack

Compute = Callable[
    [Float[Tensor, "some content"], Int[Tensor, " some"], Int[Tensor, " some"]], Mapping[str, Tensor]
]
"""Of drawn content, the samples that it belongs to and their variants, values with a row for each."""


@dataclass(frozen=True)
class SharedDraws:
    """One draw of content from each of several joint posteriors, for each sample."""

    contents: Float[Tensor, "expert batch content"]
    """As each of the distinct experts draws it."""

    taken: Int[Tensor, "posterior batch"]
    """The expert that a posterior takes for a sample."""

    @property
    def content(self) -> Float[Tensor, "posterior batch content"]:
        """What each posterior has drawn."""
        return self.contents[self.taken, torch.arange(self.taken.shape[1], device=self.taken.device)]

    def compute(
        self, function: Compute, variants: Int[Tensor, " posterior"] | None = None
    ) -> dict[str, Float[Tensor, "posterior batch ..."]]:
        """What a function makes of each posterior's draws; it sees equal ones once, and a batch at most.

        Args:
            function: given content, samples and variants.
            variants: 0 or 1, by which the function tells posteriors apart; none: all are alike.
        """
        batch = self.taken.shape[1]
        variants = torch.zeros_like(self.taken[:, 0]) if variants is None else variants
        samples = torch.arange(batch, device=self.taken.device)
        distinct, places = torch.unique(
            (2 * self.taken + variants[:, None]) * batch + samples, return_inverse=True
        )
        parts = []
        for some in distinct.split(batch):
            sample, variant, expert = some % batch, some // batch % 2, some // batch // 2
            parts.append(function(self.contents[expert, sample], sample, variant))
        return {name: torch.cat([part[name] for part in parts])[places] for name in parts[0]}


def draw_together(
    posteriors: Sequence[Mixture],
    noise: Float[Tensor, "batch content"],
    choice: Float[Tensor, " batch"],
) -> SharedDraws:
    """Draw from each posterior by the same noise; experts of the same group are the same.

    Args:
        posteriors: from `MultimodalVae.joint`, on the same samples.
        noise: standard normal.
        choice: uniform draws from [0, 1) that select a mixture's experts.
    """
    experts: dict[tuple[str, ...], Gaussian] = {}
    for posterior in posteriors:
        own = zip(posterior.groups, posterior.experts.mu, posterior.experts.logvar, strict=True)
        for group, mu, logvar in own:
            experts.setdefault(group, Gaussian(mu, logvar))
    places = {group: place for place, group in enumerate(experts)}
    taken = [
        torch.tensor([places[group] for group in posterior.groups], device=choice.device)[
            posterior.chosen(choice)
        ]
        for posterior in posteriors
    ]
    return SharedDraws(stack(list(experts.values())).sample(noise), torch.stack(taken))
