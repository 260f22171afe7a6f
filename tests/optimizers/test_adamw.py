"""Our AdamW step against torch's."""

import torch

from model.optimizers.adamw import adamw_step


def test_ten_steps_equal_torch() -> None:
    generator = torch.Generator().manual_seed(5)
    shapes = [(4, 3), (7,), ()]
    ours = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    theirs = [torch.nn.Parameter(p.clone()) for p in ours]
    first, second = ([torch.zeros_like(p) for p in ours] for _ in range(2))
    optimizer = torch.optim.AdamW(theirs, lr=0.03, betas=(0.8, 0.97), eps=1e-6, weight_decay=0.2)
    for step in range(1, 11):
        gradients = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        adamw_step(
            ours,
            gradients,
            first,
            second,
            step=step,
            learning_rate=0.03,
            betas=(0.8, 0.97),
            epsilon=1e-6,
            weight_decay=0.2,
        )
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other.data, rtol=1e-12, atol=1e-14)
