"""Table 2 of the MoFO paper with SmolLM2-135M: what makes docs/results/table2-smollm2.md."""
