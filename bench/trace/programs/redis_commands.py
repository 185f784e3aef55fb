"""Prints commands for redis: a cache whose values are short at first, then two thirds of them longer
ones, then of all lengths."""
import random

random.seed(7)
KEYS = 14_000
for i in range(KEYS):
    print("SET key:%d %s" % (i, "x" * random.randint(20, 120)))
for i in range(KEYS):
    if i % 3:
        print("DEL key:%d" % i)
for i in range(KEYS * 3 // 4):
    print("SET key:%d %s" % (100_000 + i, "y" * random.randint(150, 400)))
for i in range(KEYS * 3 // 2):
    k = random.randrange(KEYS)
    print(random.choice([
        "SET key:%d %s" % (k, "z" * int(random.lognormvariate(5, 1.2))),
        "DEL key:%d" % (100_000 + k),
        "HSET h:%d f%d %s" % (k % 500, k, "v" * random.randint(5, 60)),
    ]))
