"""The mean of a list of numbers, told on standard output and kept in a file."""

import json
import statistics
import sys

with open(sys.argv[1]) as source:
    numbers = json.load(source)
mean = statistics.mean(numbers)
print("mean:", mean)
with open("report.json", "w") as sink:
    print(json.dumps({"count": len(numbers), "mean": mean}), file=sink)
