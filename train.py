"""Train from a checkout: `python train.py [overrides]` or `accelerate launch train.py [overrides]`."""

from ddpm_train.cli.train import main

if __name__ == "__main__":
    main()
