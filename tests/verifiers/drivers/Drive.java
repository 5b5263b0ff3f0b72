import java.nio.charset.StandardCharsets;

/** Runs the example: the body on standard input, the header as argument if there is one. */
final class Drive {
    public static void main(String[] args) throws Exception {
        byte[] body = System.in.readAllBytes();
        try {
            DealixSignature.verify(body, args.length > 0 ? args[0] : null, System.getenv("DEALIX_WEBHOOK_SECRET"));
        } catch (SecurityException refused) {
            System.err.println("refused: " + refused.getMessage());
            System.exit(1);
        }
        String text = new String(body, StandardCharsets.UTF_8);
        System.out.println("accepted " + text.replaceFirst("(?s).*\"id\":\"([^\"]*)\".*", "$1"));
    }
}
