<?php

// Runs the example: the body on standard input, the header as argument if there is one.

require __DIR__ . '/verify.php';

try {
    $event = dealix_verify(file_get_contents('php://stdin'), $argv[1] ?? '', getenv('DEALIX_WEBHOOK_SECRET'));
} catch (UnexpectedValueException $refused) {
    fwrite(STDERR, 'refused: ' . $refused->getMessage() . "\n");
    exit(1);
}
echo 'accepted ', $event['id'], "\n";
