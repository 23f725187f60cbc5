"""What scores say: intervals, ranks, comparisons, the law of b, the paper beside."""
