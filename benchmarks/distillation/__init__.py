"""Does distillation help? All methods on all bases, one generated data set, one budget, several seeds, with the spread.

python -m benchmarks.distillation run --size cpu      trains what is not finished, and writes the record
python -m benchmarks.distillation render              docs/benchmark.md and docs/benchmark.html from the records
"""
