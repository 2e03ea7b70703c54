"""Everything that crosses between processes: the only package that imports torch.distributed."""
