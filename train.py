"""Train from a checkout: `python train.py [overrides]` or `accelerate launch train.py [overrides]`."""

if __name__ == "__main__":
    # Not above: the workers that prepare images import this file too, and need nothing of it.
    from ddpm_train.cli.train import main

    main()
