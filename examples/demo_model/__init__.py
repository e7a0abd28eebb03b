"""The demo model: a small Qwen-VL trained from scratch on synthetic scenes."""
