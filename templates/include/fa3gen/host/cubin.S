// Embeds a cubin, which lies beside the object being assembled: FA3GEN_FILE as FA3GEN_SYMBOL.
    .section .rodata
    .balign 64
    .global FA3GEN_SYMBOL
    .hidden FA3GEN_SYMBOL
    .type FA3GEN_SYMBOL, %object
FA3GEN_SYMBOL:
    .incbin FA3GEN_FILE
    .size FA3GEN_SYMBOL, . - FA3GEN_SYMBOL
    .section .note.GNU-stack, "", %progbits
