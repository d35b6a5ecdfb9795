"""Trained PyTorch networks to phones and microcontrollers as integers, with the bytes known before they ship."""
