"""``python -m phicalc.cli`` is the ``phicalc`` command."""

from phicalc.cli import app

if __name__ == "__main__":
    app()
