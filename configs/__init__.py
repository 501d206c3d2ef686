"""Values, no code. This file only lets the folder be found once it is installed."""
