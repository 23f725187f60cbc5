"""The colours of every figure and page.

The series colours are Okabe and Ito's, adapted: common colour blindnesses tell them apart.
"""

COLORS = ("#0072b2", "#d55e00", "#009e73", "#b05c92", "#3a9bd0", "#b8860b", "#7b6fd0", "#7a5c3e")
INK, MUTED, RULE, PAPER = "#1b1f24", "#667080", "#d9dee5", "#fefefe"
