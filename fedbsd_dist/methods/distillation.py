"""The divergence by which one model teaches another (Hinton et al., arXiv 1503.02531, section 2)."""

from torch import Tensor
from torch.nn import functional as F


def kl(student: Tensor, teacher: Tensor, tau: float, *, squared: bool) -> Tensor:
    """KL(teacher || student) of the softmax over dimension 1 of [n, d] at temperature tau, mean over the batch.

    `squared`: times tau^2, so that its gradient does not shrink with tau.
    """
    q, p = F.log_softmax(student / tau, 1), F.log_softmax(teacher / tau, 1)
    # not F.kl_div, the same to the bit, which vmap does client by client
    divergence = (p.exp() * (p - q)).sum() / len(q)
    return divergence * tau**2 if squared else divergence
