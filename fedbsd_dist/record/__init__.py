"""Everything a run leaves behind. metrics.jsonl is the record; console and TensorBoard are views of it."""
