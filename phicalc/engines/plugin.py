"""What ASE's list of plugins shows of us: entry point group ``ase.plugins``, ASE 3.29 and later."""

from ase._4.plugins.plugin import CalculatorPlugin

__ase_plugins__ = {
    CalculatorPlugin(
        "phicalc",
        citation="The idea of the Φ head: arXiv 2505.14606",
        implementation="phicalc.engines.ase.PhiCalculator",
    )
}
