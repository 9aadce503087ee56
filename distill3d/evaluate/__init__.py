"""Evaluators that give the official numbers: KITTI average precision at 40 recall points, and the overlaps it needs."""
