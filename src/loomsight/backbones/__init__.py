"""Fixed, pretrained feature networks. Each takes BCHW float in [0, 1] RGB and normalises inside."""
