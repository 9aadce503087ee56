"""How fast is everything, and how far is it from what the machine could do?

    python -m benchmarks.speed                        all parts that are not recorded yet
    python -m benchmarks.speed --only detectors       one part; --again measures what is recorded once more
    python -m benchmarks.speed --device cuda          the same on a GPU, into a record of its own
    python -m benchmarks.speed --smoke                tiny networks, once: does every part run?
    python -m benchmarks.speed --render               docs/speed.md from the records

Parts are written one after the other to benchmarks/results/speed_<device>.json, each with the machine's limits as they
were measured in the same run, with the same number of threads.  Run it on a machine that does nothing else.
"""
