"X-modaler's command line: python train_net.py --config-file FILE [--resume] [--eval-only] [--num-gpus N] [KEY VALUE …]"
import sys
from xmodaler_nb.commands.train import train_main

if __name__ == '__main__': sys.exit(train_main())
