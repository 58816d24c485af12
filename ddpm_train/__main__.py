"""`python -m ddpm_train`, the same as `ddpm-train`."""

from ddpm_train.cli.train import main

if __name__ == "__main__":
    main()
