"""A sweep report: findings, the HTML page, every file."""
