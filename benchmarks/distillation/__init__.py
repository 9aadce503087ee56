"""Does distillation help? All methods on all bases, one generated data set, one budget, several seeds, with the spread.

python -m benchmarks.distillation run --size cpu                    trains what is not finished, writes the record
python -m benchmarks.distillation run --size cpu --all-seeds        as many seeds of every group as of MonoDLE's
python -m benchmarks.distillation run --size cpu --groups search    the search for a recipe of our own, an hour more
python -m benchmarks.distillation render                            docs/benchmark* from the records
"""
