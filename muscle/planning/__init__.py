"""`muscle plan`: what an experiment will need, reckoned before anything starts.

    hardware   the GPUs reckoned with, by name or as this machine has them
    meta       models without memory: parameter counts, multiply-adds, allocations of a step
    work       the tokens of training, caching and evaluation
    flops      floating point operations of each
    memory     what one GPU holds, part by part
    fitting    which setting makes it fit
    facts      what an experiment is made of, read once
    distilled  of level choice: questions as trees, and what teachers are asked
    steps      what one step needs; `answers`: those that level choice adds
    estimate   every step of it under given resources
    view       tables and JSON; `command`: what the terminal asks for

Nothing here reads a weight: a config and a tokenizer are enough.
"""
