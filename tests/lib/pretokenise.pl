# SPDX-License-Identifier: Apache-2.0
# The pre-tokenisers as the regular expressions they are published as, for test_pretokenise.c.
# usage: perl pretokenise.pl NAME < texts, each ended by a NUL
# Prints a line for each text: the sizes of its pieces in bytes.
use strict;
use warnings;
use Encode;

my $gpt2 = qr/'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/;
my $contraction = qr/(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])/;
my $rest = qr/ ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+/;
my $han = qr/[\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}]+/;
my $v3 = qr/[!"#\$%&'()*+,\-.\/:;<=>?\@\[\\\]^_`{|}~][A-Za-z]+
    |[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|[ ]?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+/x;

my %stages = (
    'gpt-2'          => [$gpt2],
    'smollm'         => [qr/\p{N}/, $gpt2],
    'llama-bpe'      => [qr/$contraction|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|$rest/],
    'qwen2'          => [qr/$contraction|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|$rest/],
    'qwen35'         => [qr/$contraction|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}
        |[ ]?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+/x],
    'default'        => [qr/[\p{P}\$+<=>^~|]+/, $gpt2, qr/\p{N}+/, qr/[0-9][0-9][0-9]/],
    'deepseek-coder' => [qr/[\r\n]/, qr/\s?\p{L}+/, qr/\s?\p{P}+/, $han, qr/\p{N}/],
    'deepseek-v3'    => [qr/\p{N}{1,3}/,
        qr/[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+/, $v3],
);

# Matches and what lies between them.
sub cut {
    my ($stage, @texts) = @_;
    my @pieces;
    for my $text (@texts) {
        my $last = 0;
        while ($text =~ /$stage/g) {
            push @pieces, substr($text, $last, $-[0] - $last) if $-[0] > $last;
            push @pieces, substr($text, $-[0], $+[0] - $-[0]);
            $last = $+[0];
        }
        push @pieces, substr($text, $last) if $last < length $text;
    }
    return @pieces;
}

my $wanted = $stages{ $ARGV[0] } or die "unknown: $ARGV[0]\n";
$/ = "\0";
binmode STDIN;
while (my $line = <STDIN>) {
    chomp $line;
    my @pieces = (decode('UTF-8', $line));
    @pieces = cut($_, @pieces) for @$wanted;
    print join(' ', map { length(encode('UTF-8', $_)) } @pieces), "\n";
}
