"""One thread in the tests' own process, as a rank has: more would sum in another order, and wait for each other."""

import torch

torch.set_num_threads(1)
