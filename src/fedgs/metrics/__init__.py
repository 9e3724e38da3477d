"""Scores: from masks to counts, from counts to Dice, from many images to honest means."""
